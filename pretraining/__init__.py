"""How the package's own weights were made: `python -m pretraining --data FOLDER --out FOLDER`."""
