"""Every way in which a results folder can go wrong is caught and named; what is harmless is not."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from localized_unlearning.provenance import locks, records
from conftest import SOURCES, Lab
