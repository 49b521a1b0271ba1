"""Real applications: models that ship inside PyPI packages, each with the data and the metric of its own use."""

from __future__ import annotations

from apps import documents, file_types, ocr_pages, ocr_rec, sentences, voice
from apps.base import Application

MODULES = (file_types, ocr_rec, ocr_pages, documents, voice, sentences)
APPLICATIONS: dict[str, Application] = {app.name: app for module in MODULES for app in module.APPLICATIONS}
