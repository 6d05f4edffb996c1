"""The pretraining of the package's own weights: `python -m pretraining --data FOLDER --out FOLDER`."""
