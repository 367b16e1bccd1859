"""Training: batches, optimisers, schedules, checkpoints and the loop."""

import lazy_loader

# Names stand in __init__.pyi: the command line reads options of TrainingPlan, but not torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
