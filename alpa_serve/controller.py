"""AlpaServe's controller module: the runtime on Ray, under the names that AlpaServe's scripts import."""

from __future__ import annotations

from alpa_serve.runtime.controller_actor import Controller
from alpa_serve.runtime.controller_state import GroupInfo, ModelInfo
from alpa_serve.runtime.deploy import Deployment, deploy
from alpa_serve.runtime.group_manager import GroupManager
from alpa_serve.runtime.launching import run_controller
from alpa_serve.runtime.models import EmulatedModel, OpenAICompatibleModel
from alpa_serve.runtime.settings import CONTROLLER_NAME, ServerSettings
from alpa_serve.scheduling.registry import CreateInfo

__all__ = [
    "CONTROLLER_NAME",
    "Controller",
    "CreateInfo",
    "Deployment",
    "EmulatedModel",
    "GroupInfo",
    "GroupManager",
    "ModelInfo",
    "OpenAICompatibleModel",
    "ServerSettings",
    "deploy",
    "run_controller",
]
