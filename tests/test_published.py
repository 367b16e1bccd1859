"""Published screens, from small files of exactly the published layout. Nothing is fetched."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from cli_helpers import run
from scipy import sparse

import pyro_fcr
from pyro_fcr import SchemaError
from pyro_fcr.comparison import paper
from pyro_fcr.data import datasets


def scperturb(perturbations, lines, **columns):
    """A file as scPerturb writes it: counts, gene symbols, Ensembl ids in var."""
    rng = np.random.default_rng(0)
    n = 240
    obs = pd.DataFrame(
        {
            "cell_line": pd.Categorical(np.resize(lines, n)),
            "time": 24.0,
            "dose_value": np.resize([10.0, 100.0, 1000.0, 10000.0], n),
            "perturbation": pd.Categorical(np.repeat(perturbations, n // len(perturbations))),
            "dose_unit": "nM",
            "perturbation_type": "drug",
            **columns,
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame({"ensembl_id": [f"ENSG{i:011d}" for i in range(12)]})
    var.index = pd.Index([f"GENE{i}" for i in range(12)], name="gene_symbol")
    return ad.AnnData(sparse.csr_matrix(rng.poisson(2, (n, 12)).astype(np.float32)), obs, var)


@pytest.fixture
def sciplex():
    adata = scperturb(["control", "(+)-JQ1", "Quisinostat", "Trametinib"], ["A549", "K562", "MCF7"])
    adata.obs.loc["cell70", "perturbation"] = np.nan  # hash not known
    return adata


def test_sciplex_is_ready_for_a_fit(sciplex, tmp_path):
    sciplex.write_h5ad(tmp_path / "sciplex.h5ad")
    found = datasets.sciplex3(tmp_path / "sciplex.h5ad")
    assert found.n_obs == 239
    assert (found.obs.loc[found.obs["treatment"] == "control", "dose"] == 0).all()
    schema = pyro_fcr.Schema(
        treatment_key="treatment", control="control", covariate_keys="cell_line", dose_key="dose"
    )
    registry, _ = pyro_fcr.data.register(found, schema)
    assert registry.agents == ("(+)-JQ1", "Quisinostat", "Trametinib")
    assert registry.doses["Quisinostat"] == (10.0, 10000.0)


def test_parts_of_a_screen_keep_their_controls(sciplex):
    found = datasets.sciplex3(sciplex, treatments=["Quisinostat"], cell_lines=["A549", "MCF7"])
    assert set(found.obs["treatment"]) == {"control", "Quisinostat"}
    assert set(found.obs["cell_line"]) == {"A549", "MCF7"}
    assert "treatment" not in sciplex.obs


def test_times_of_mixseq_are_chosen():
    adata = scperturb(["control", "Trametinib"], ["A", "B"], time=np.resize(["6", "24"], 240))
    found = datasets.mcfarland2020(adata, treatments=["Trametinib"], times=[24])
    assert set(found.obs["time"]) == {"24"}
    assert found.n_obs == 120


@pytest.mark.parametrize(
    ("edit", "asked", "message"),
    [
        (lambda a: a.obs.drop(columns="cell_line"), {}, "sciplex3: obs has no column 'cell_line'"),
        (lambda a: a.obs, {"treatments": ["quisinostat"]}, "Did you mean 'Quisinostat'"),
        (lambda a: a.obs, {"cell_lines": ["HeLa"]}, "no cell has cell_line 'HeLa'; known: 'A549'"),
        (
            lambda a: a.obs.assign(perturbation="Vehicle"),
            {},
            "no cell has the perturbation 'control'",
        ),
    ],
)
def test_what_a_file_lacks_is_said(sciplex, edit, asked, message):
    sciplex.obs = edit(sciplex)
    with pytest.raises(SchemaError, match=message):
        datasets.sciplex3(sciplex, **asked)


def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PYRO_FCR_DATA", str(tmp_path))

    def refuse(address, timeout):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(OSError, match="no route to host") as found:
        datasets.sciplex3()
    assert str(tmp_path / "srivatsan_2020_sciplex3.h5ad") in str(found.value)
    assert "https://zenodo.org/records/13350497/files/SrivatsanTrapnell2020" in str(found.value)
    assert not list(tmp_path.iterdir())


def test_a_download_is_made_once(monkeypatch, tmp_path, sciplex):
    monkeypatch.setenv("PYRO_FCR_DATA", str(tmp_path / "cache"))
    sciplex.write_h5ad(tmp_path / "there.h5ad")
    asked = []

    def serve(address, timeout):
        asked.append(address)
        return (tmp_path / "there.h5ad").open("rb")

    monkeypatch.setattr("urllib.request.urlopen", serve)
    assert datasets.sciplex3().n_obs == datasets.sciplex3().n_obs == 239
    assert len(asked) == 1


def time_course(folder, line, inducer, genes):
    rng = np.random.default_rng(0)
    names = [f"{line}_{inducer}_{i}" for i in range(30)]
    counts = pd.DataFrame(rng.poisson(2, (len(genes), 30)), index=genes, columns=names)
    time = np.resize(["0d", "8h", "1d", "3d", "7d", "8h_rm"], 30)
    meta = pd.DataFrame({"CellLine": line, "Treatment": inducer, "Time": time}, index=names)
    stem = f"GSE147405_{line}_{inducer}_TimeCourse"
    counts.to_csv(folder / f"{stem}_UMI_matrix.csv.gz")
    meta.to_csv(folder / f"{stem}_metadata.csv.gz")


def test_emt_time_courses_are_put_together(tmp_path):
    time_course(tmp_path, "A549", "TGFB1", ["VIM", "CDH1", "FN1"])
    time_course(tmp_path, "MCF7", "EGF", ["CDH1", "VIM", "MKI67"])
    found = datasets.cook2020(tmp_path)
    assert sorted(found.var_names) == ["CDH1", "VIM"]
    assert set(found.obs["treatment"]) == {"control", "TGFB1", "EGF"}
    assert sorted(found.obs["dose"].unique()) == pytest.approx([0, 1 / 3, 1, 3, 7])
    assert not found.obs["Time"].str.endswith("_rm").any()
    both = datasets.cook2020(tmp_path, after_removal=True)
    assert both.n_obs == 60
    assert (both.obs.loc[both.obs["Time"] == "8h_rm", "dose"] == 7).all()
    assert found.obs_names.is_unique
    (tmp_path / "GSE147405_MCF7_EGF_TimeCourse_metadata.csv.gz").unlink()
    with pytest.raises(SchemaError, match="GSE147405_MCF7_EGF_TimeCourse_metadata.csv.gz beside"):
        datasets.cook2020(tmp_path)
    with pytest.raises(FileNotFoundError, match="acc=GSE147405"):
        datasets.cook2020(tmp_path / "empty")


def test_a_screen_is_fitted_and_measured_beside_the_paper(sciplex, tmp_path):
    pytest.importorskip("causallearn", reason="needs causal-learn: pip install '.[independence]'")
    pytest.importorskip("igraph", reason="needs igraph: pip install '.[leiden]'")
    adata = datasets.sciplex3(sciplex)
    schema = pyro_fcr.Schema(
        treatment_key="treatment", control="control", covariate_keys="cell_line", dose_key="dose"
    )
    found = paper.reproduce(
        "sciplex",
        adata,
        schema,
        n_genes=10,
        architecture=pyro_fcr.Architecture(n_x=2, n_t=2, n_tx=2, n_hidden=8),
        plan=pyro_fcr.TrainingPlan(max_epochs=2, engine="eager", progress=False),
        n_permutations=9,
        n_draws=5,
    )
    assert found.evaluation.scenarios == ["unseen pair"]
    assert {"x", "t", "random"} == set(found.hsic["other"])
    known = found.nmi.dropna(subset="published").groupby("block")["published"].first()
    assert known.to_dict() == {"z_x": 0.886, "z_tx": 0.718, "z_t": 0.276}
    assert found.nmi["value"].between(0, 1).all()
    folder = found.to_folder(tmp_path / "out", title="sciplex")
    assert {"model", "evaluation", "hsic.csv", "nmi.csv"} <= {p.name for p in folder.iterdir()}


def test_the_most_variable_genes_are_kept():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.uniform(1, 20, 300), (200, 300)).astype(np.float32)
    counts[:, 7] = rng.poisson(np.resize([0.1, 20.0], 200))
    adata = ad.AnnData(sparse.csr_matrix(counts))
    kept = paper.variable_genes(adata, 10)
    assert kept.n_vars == 10
    assert "7" in kept.var_names
    assert (kept[:, "7"].X.toarray().ravel() == counts[:, 7]).all()


def test_pairs_of_different_treatments_are_held_out_first(sciplex):
    adata = datasets.sciplex3(sciplex)
    schema = pyro_fcr.Schema(
        treatment_key="treatment", control="control", covariate_keys="cell_line"
    )
    out = paper.hold_out_pairs(adata, schema, share=1 / 3, seed=0) == "ood"
    pairs = adata.obs.loc[out, ["treatment", "cell_line"]].drop_duplicates()
    assert sorted(pairs["treatment"]) == ["(+)-JQ1", "Quisinostat", "Trametinib"]


def test_what_the_paper_does_not_say_has_to_be_said(tmp_path):
    result = run("reproduce", "multiplex-9", "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "multiplex-9: the paper does not say which experiments" in result.output
    result = run("reproduce", "sciplex", "--out", tmp_path / "out", "--time", 24)
    assert "--time is for the sets of MIX-Seq" in result.output
