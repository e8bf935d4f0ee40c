"""Models that the runtime brings along: one that takes its profiled time, and one that another server answers for."""

from alpa_serve.runtime.models.emulated import EXACT, EmulatedModel
from alpa_serve.runtime.models.emulated_devices import EmulatedDevices
from alpa_serve.runtime.models.openai_compatible import OpenAICompatibleModel

__all__ = ["EXACT", "EmulatedDevices", "EmulatedModel", "OpenAICompatibleModel"]
