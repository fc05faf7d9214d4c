"""Launcher for a clone: `python cli.py export --variant lite` without installing the package."""

from rest_deploy.cli import main

if __name__ == "__main__":
    main()
