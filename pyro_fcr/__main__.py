"""``python -m pyro_fcr`` is ``pyro-fcr``."""

from pyro_fcr.cli import app

if __name__ == "__main__":
    app()
