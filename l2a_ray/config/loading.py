"""From YAML files and plain values to :class:`~l2a_ray.config.settings.Settings`; the command line's parser too."""

import dataclasses
import os
from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_loader, set_parsing_settings

from l2a_ray.config.building import build
from l2a_ray.config.settings import Settings
from l2a_ray.errors import ConfigError

MODE = "yaml_of_unique_keys"
"""How parsers read values: ``ArgumentParser(parser_mode=MODE)``. A parser's subcommands read as it does."""


def settings_parser(**options: Any) -> ArgumentParser:
    """Return a parser of all settings, with an option each, and ``--config`` for YAML files.

    Args:
        options: of jsonargparse's ``ArgumentParser``.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(parser_mode=MODE, **options)
    parser.add_argument("--config", action="config", help="YAML file with settings; give several to layer them.")
    parser.add_class_arguments(Settings, sub_configs=True)
    return parser


def load(*files: str | Path, **changes: Any) -> Settings:
    """Read settings: :func:`l2a_ray.config.load`."""
    return Layers(*files).load(changes)


class Layers:
    """YAML files, read once, on which changes are laid, several times over.

    Args:
        files: what a later one says counts.

    Raises:
        ConfigError: as :func:`load`.
    """

    def __init__(self, *files: str | Path) -> None:
        self._parser = settings_parser(exit_on_error=False)
        try:
            self._layered = self._parser.parse_args([f"--config={os.fspath(file)}" for file in files])
        except ArgumentError as error:
            raise ConfigError(str(error)) from error

    def load(self, changes: Mapping[str, Any]) -> Settings:
        """Return the files' settings with changes, by dotted names or nested, that count more.

        Raises:
            ConfigError, SettingError: as :func:`load`.
        """
        return build(Settings, self.read(changes))

    def read(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the same as nested plain values, whose names and types are right; whether they can work, is not said.

        It takes half a second, ``build`` a hundredth.

        Raises:
            ConfigError: as :func:`load`.
        """
        try:
            return _plain_settings(self._parser.parse_object(plain_values(changes), self._layered))
        except ArgumentError as error:
            raise ConfigError(str(error)) from error


def read_yaml(path: Path) -> Any:
    """Read a YAML file in which no name stands twice.

    Raises:
        ConfigError: it cannot be read, or is no such YAML.
    """
    try:
        return _read(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Name a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(str(error)) from error


def settings_from(parsed: Namespace) -> Settings:
    """Build the settings that :func:`settings_parser` has read; what else the namespace holds is left out.

    Raises:
        SettingError: a setting has a value that cannot work; the message has its whole path.
    """
    return build(Settings, _plain_settings(parsed))


def _plain_settings(parsed: Namespace) -> dict[str, Any]:
    return {field.name: plain_values(parsed[field.name]) for field in dataclasses.fields(Settings)}


def plain_values(value: Any) -> Any:
    """Return mappings, lists and values in place of namespaces, settings and paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping | Namespace):
        items = value.items() if isinstance(value, Mapping) else vars(value).items()
        # A path is that of the file that it was read from.
        return {key: plain_values(item) for key, item in items if key != "__path__"}
    if isinstance(value, list | tuple):
        return type(value)(map(plain_values, value))
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _read(content: str, path: str = "") -> Any:
    """Read YAML as jsonargparse does, but refuse a name that stands twice in one mapping: YAML takes the last."""
    loader = yaml.SafeLoader(content)
    loader.name = path or "it"  # in the library's own complaints
    for mapping in _mappings(loader.get_single_node()):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if key.value in lines:
                place = f"{path}, line {line}" if path else f"line {line}"
                raise yaml.YAMLError(f"{place}: `{key.value}` stands in line {lines[key.value]} already. Keep one")
            lines[key.value] = line
    return get_loader("yaml")(content)


def _mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from _mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _mappings(value)


set_loader(MODE, _read, exceptions=(yaml.YAMLError,))
