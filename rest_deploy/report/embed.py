"""A bulk run as text."""

from __future__ import annotations

from rest_deploy.embed.run import EmbedReport


def embedded(report: EmbedReport) -> str:
    """Where the answers are, how many, how fast; and whether too many images had none."""
    fresh = report.images - report.resumed
    lines = [
        f"{report.output}: {report.answer} of {report.rows} images, {report.seconds:.1f} s",
        f"engine: {report.engine}, sha256 {report.engine_sha256[:12]}",
    ]
    if report.resumed == report.images:
        lines.append("nothing was computed: an earlier run had done all of it")
    elif report.resumed:
        lines.append(f"resumed: {report.resumed} images were done before, {fresh} now")
    share = report.bad / report.images
    lines.append(f"without an answer: {report.bad} ({share:.2%}), in {report.bad_output}")
    if report.too_many_bad:
        lines.append(f"FAIL: more than {report.max_bad:.2%} of the images had no answer")
    return "\n".join(lines)
