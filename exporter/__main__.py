"""`python -m exporter` is `skopeo-dir`."""

from exporter.cli.app import main

if __name__ == "__main__":
    main()
