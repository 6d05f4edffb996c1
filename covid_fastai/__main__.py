"""`python -m covid_fastai` is `covid-fastai`."""

from covid_fastai.app.cli.main import main

if __name__ == "__main__":
    main()
