"""Values of config keys as users write them."""

from instseg_d2.config import load_config


def as_yaml(key, value):
    *nodes, name = key.split(".")
    return (
        "".join(f"{'  ' * depth}{node}:\n" for depth, node in enumerate(nodes))
        + f"{'  ' * len(nodes)}{name}: {value}\n"
    )


def from_file(tmp_path, key, value):
    (tmp_path / "mine.yaml").write_text(as_yaml(key, value))
    return load_config(str(tmp_path / "mine.yaml"))


def written_config(tmp_path, place, key, value):
    """The config with one value, from the "command line" or from "YAML"."""
    return load_config("", [key, value]) if place == "command line" else from_file(tmp_path, key, value)


def changed_keys(old, new, prefix=""):
    """The keys of two configs whose values differ."""
    changed = set()
    for key, value in new.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            changed |= changed_keys(old[key], value, f"{name}.")
        elif value != old[key]:
            changed.add(name)
    return changed
