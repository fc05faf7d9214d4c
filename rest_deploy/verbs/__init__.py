"""The functions behind the commands: each composes stages and returns one frozen report."""

from rest_deploy.verbs.bench import BenchReport, BenchWishes, bench
from rest_deploy.verbs.build import (
    BuildReport,
    build_engine,
    quantize,
)
from rest_deploy.verbs.calibrate import CalibrationReport, Images, calibrate
from rest_deploy.verbs.compare import compare
from rest_deploy.verbs.deploy import DeployReport, ExportWishes, deploy
from rest_deploy.verbs.dry_run import EnginePlan, plan_engine
from rest_deploy.verbs.engine import Wishes
from rest_deploy.verbs.export import ExportReport, export, file_name
from rest_deploy.verbs.inspect import Inspection, inspect
from rest_deploy.verbs.lint import LintReport, lint
from rest_deploy.verbs.make import Request
from rest_deploy.verbs.profile import profile
from rest_deploy.verbs.progress import Counter, Progress, silent, uncounted
from rest_deploy.verbs.provider import ProviderWishes, check_backend
from rest_deploy.verbs.refit import RefitReport, refit
from rest_deploy.verbs.report import page_path
from rest_deploy.verbs.selftest import SelfTestReport, selftest
from rest_deploy.verbs.sensitivity import SensitivityReport, sensitivity
from rest_deploy.verbs.trial import Trial
from rest_deploy.verbs.variants import VariantRow, VariantTable, variants
from rest_deploy.verbs.verify import open_session, verify

__all__ = [
    "BenchReport",
    "BenchWishes",
    "BuildReport",
    "CalibrationReport",
    "Counter",
    "DeployReport",
    "EnginePlan",
    "ExportReport",
    "ExportWishes",
    "Images",
    "Inspection",
    "LintReport",
    "Progress",
    "ProviderWishes",
    "RefitReport",
    "Request",
    "SelfTestReport",
    "SensitivityReport",
    "Trial",
    "VariantRow",
    "VariantTable",
    "Wishes",
    "bench",
    "build_engine",
    "calibrate",
    "check_backend",
    "compare",
    "deploy",
    "export",
    "file_name",
    "inspect",
    "lint",
    "open_session",
    "page_path",
    "plan_engine",
    "profile",
    "quantize",
    "refit",
    "selftest",
    "sensitivity",
    "silent",
    "uncounted",
    "variants",
    "verify",
]
