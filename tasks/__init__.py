"""One module per stage: read files and parameters, call the library, write files."""

from headstart.core import code_digest as code_digest  # first: hashes the code before the rest of it is imported

try:
    import pydantic as pydantic
    import ruamel.yaml as ruamel_yaml  # noqa: F401
except ImportError as error:
    raise SystemExit(
        f"error: {error}: this Python lacks Headstart's packages\n  to do:  source .venv/bin/activate (after `make install`)"
    ) from None
