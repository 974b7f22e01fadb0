"""Folders that `save_to_disk` of the library `datasets` has written: one data set, or one of several splits."""

from pathlib import Path

from ftlab.data.folder import names_of, split_of
from ftlab.data.hub import Tables
from ftlab.errors import DataError, first_line


def is_saved(folder: Path) -> bool:
    """Whether the folder holds what `save_to_disk` writes beside the rows."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def tables(folder: Path) -> tuple[Tables, list[str]]:
    """The rows of each split (train at least; a data set without splits is all train), and names of splits left out.

    Raises DataError for a damaged folder or one without train.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its readers raise
        raise DataError(
            f"data.path={folder}: not a whole folder of save_to_disk ({first_line(error)}). Save or copy it again."
        ) from None
    if isinstance(saved, datasets.Dataset):
        return {"train": saved.to_list()}, []
    names = names_of(f"data.path={folder}", map(str, saved))
    found = {split: saved[name].to_list() for split, name in names.items()}
    if "train" not in found:
        raise DataError(
            f"data.path={folder} holds no split train, only {', '.join(map(str, saved))}.\n"
            "Name the folder of the split to train on: data.path=FOLDER"
        )
    return found, [str(name) for name in saved if not split_of(str(name))]
