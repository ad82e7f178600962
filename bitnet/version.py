"""The version; pyproject.toml reads it from here."""

VERSION: str = "0.2.0"
