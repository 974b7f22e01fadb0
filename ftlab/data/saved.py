"""Folders written by `save_to_disk` of the library `datasets`: a data set with or without splits."""

from pathlib import Path

from ftlab.data.folder import names_of, split_of
from ftlab.data.hub import Tables
from ftlab.errors import DataError, first_line


def is_saved(folder: Path) -> bool:
    """Whether the folder holds the files that `save_to_disk` writes beside the rows."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def tables(folder: Path) -> tuple[Tables, list[str]]:
    """Return the rows of each split (at least train; a data set without splits is all train), and the names of splits
    that are not read.

    Raises DataError for a damaged folder or one without train.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library passes on whatever its readers raise
        raise DataError(
            f"data.path={folder}: a damaged or incomplete folder of save_to_disk ({first_line(error)}).\n"
            "Save or copy it again."
        ) from None
    if isinstance(saved, datasets.Dataset):
        return {"train": saved.to_list()}, []
    names = names_of(f"data.path={folder}", map(str, saved))
    found = {split: saved[name].to_list() for split, name in names.items()}
    if "train" not in found:
        raise DataError(
            f"data.path={folder} has no train split, only {', '.join(map(str, saved))}.\n"
            "Name the folder of the split to train on: data.path=FOLDER"
        )
    return found, [str(name) for name in saved if not split_of(str(name))]
