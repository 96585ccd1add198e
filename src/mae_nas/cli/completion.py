"""Tab completion: Hydra's, behind our sub-commands."""

import os
from contextlib import suppress

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.completion_plugin import CompletionPlugin
from omegaconf.errors import OmegaConfBaseException

from mae_nas.cli.library import COMMANDS, open_library


def completion(request: str, commands: list[str]) -> list[str]:
    """Answer `mae-nas -sc install=SHELL | uninstall=SHELL | query=SHELL`.

    Hydra's plugins print for themselves; what is returned is still to be printed.
    """
    action, _, shell = request.partition("=")
    found = [p for p in Plugins.instance().discover() if issubclass(p, CompletionPlugin)]
    plugins = {plugin.provides(): plugin for plugin in found}
    if action not in ("install", "uninstall", "query") or shell not in plugins:
        raise ValueError(f"-sc {request}: write -sc install={'|'.join(sorted(plugins))}")
    command = COMMANDS[0]
    if action == "query":
        name, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
        command, space, rest = line.lstrip().partition(" ")
        if command not in commands or not space:
            return [word for word in commands if word.startswith(command)]
        if command not in COMMANDS:
            return []
        os.environ["COMP_LINE"] = f"{name} {rest}"
    # If the words before the cursor do not compose, there is nothing to offer.
    with open_library(command) as library, suppress(HydraException, OmegaConfBaseException):
        plugin = plugins[shell](library.loader)
        plugin.query(command) if action == "query" else getattr(plugin, action)()
    return []
