import pytest

from pyro_fcr import FCRLoss, Objective
from pyro_fcr.training import fit


def test_what_trains_in_one_process_is_refused_in_several(monkeypatch, programs, batch):
    objective = Objective.from_programs(*programs, batch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="FCRLoss trains in one process, but 2 run this program"):
        FCRLoss(objective)
    with pytest.raises(ValueError, match="fit trains in one process"):
        fit(objective, None, split=None)
