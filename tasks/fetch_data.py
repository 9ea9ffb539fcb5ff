"""fetch_data: put a built-in data set at data/NAME."""

from __future__ import annotations

from headstart.core.errors import InputError
from headstart.core.stages import Job, Summary, main
from headstart.data.builtin import write_digits, write_oxford_pets


def fetch_data(job: Job) -> Summary:
    """Write `data.builtin` as class folders to data/NAME.

    Raises:
        InputError: data/NAME is a link that somebody made, or a download failed.
    """
    name = job.params.data.builtin
    target = job.root / "data" / name
    if target.is_symlink():
        raise InputError(
            f"{target} is a symbolic link; the built-in set {name!r} would be written through it",
            fix=f"rename the link (and set data.source to it), e.g. mv data/{name} data/my-{name}",
        )
    folder = job.output(f"data/{name}")
    if name == "digits":
        return {"images": write_digits(folder)}
    downloads = job.root / ".headstart" / "downloads"
    return {"images": write_oxford_pets(folder, downloads, by_breed=name.endswith("breeds"))}


if __name__ == "__main__":
    main("fetch_data", fetch_data)
