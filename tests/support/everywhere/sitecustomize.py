"""Imported by every Python process that has this folder in PYTHONPATH."""

import importlib.util
import os
from pathlib import Path

if "FEDRAY_MESSAGES" in os.environ:
    file = Path(__file__).parent.parent / "messages.py"
    spec = importlib.util.spec_from_file_location("fedray_messages", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.watch_imports()
