"""The functions behind the commands: each composes stages and returns one frozen report."""

from rest_deploy.verbs.export import ExportReport, export, file_name
from rest_deploy.verbs.inspect import Inspection, inspect
from rest_deploy.verbs.progress import Progress, silent
from rest_deploy.verbs.variants import VariantRow, VariantTable, variants
from rest_deploy.verbs.verify import open_session, verify

__all__ = [
    "ExportReport",
    "Inspection",
    "Progress",
    "VariantRow",
    "VariantTable",
    "export",
    "file_name",
    "inspect",
    "open_session",
    "silent",
    "variants",
    "verify",
]
