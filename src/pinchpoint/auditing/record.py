"""What an audit came to, as one record."""

from __future__ import annotations

from pinchpoint.auditing import sentences
from pinchpoint.auditing.session import Work
from pinchpoint.auditing.threat_session import Judging
from pinchpoint.records import AuditReport, Samples, Subject, ThreatReport
from pinchpoint.utils.provenance import machine, versions


def drawn_up(work: Work, command: str, budget: float | None) -> AuditReport:
    """What it came to."""
    threats = [_threat(work, one) for one in work.judging]
    source, warnings = work.source, list(work.warnings)
    few = [one.threat for one in work.judging if one.robust().high - one.robust().low > 0.1]
    if few:
        shown = " and ".join(map(str, few))
        warnings.append(f"the intervals are wider than 10 points under {shown}: judge more samples")
    return AuditReport(
        title=f"{source.name} on {work.data.name}",
        command=command,
        seed=work.seed,
        budget=budget,
        subject=Subject(
            name=source.name,
            notes=list(source.notes),
            normalisation=source.normalisation or "none",
            parameters=sum(parameter.numel() for parameter in work.model.parameters()),
            classes=int(source.classes or 0),
            input_shape=list(work.data.input_shape),
        ),
        data=Samples(
            name=work.data.name,
            count=len(work.x),
            of=len(work.data.test),
            class_names=None if work.data.class_names is None else list(work.data.class_names),
        ),
        verdict=sentences.verdict(work.clean, threats, work.profile, work.points),
        clean=work.clean,
        threats=threats,
        pinch_points=work.points,
        advice=work.advice,
        trial=work.trial,
        profile=work.profile,
        bounds=[one.bounds for one in work.bounded.values()],
        mechanism=work.mechanism,
        pictures=work.pictures,
        examples=work.examples,
        phases=work.clock.phases,
        warnings=list(dict.fromkeys(warnings)),
        versions=versions(),
        machine=f"{machine()}, {work.x.device.type}",
        timing=work.clock.timing(),
    )


def _threat(work: Work, one: Judging) -> ThreatReport:
    norm = one.threat.norm
    bounded = work.bounded.get(norm)
    return ThreatReport(
        norm=norm,
        eps=one.threat.eps,
        attack=one.name,
        robust=one.robust(),
        universal=work.universal.get(norm),
        certified=one.certified(),
        certified_attacked=None if one.radii is None else one.tested,
        median_radius=None if bounded is None else bounded.bounds.median_radius,
        gap=work.gaps.get(norm),
        gap_bound=None if bounded is None else bounded.gap_bound,
        settled=one.settled(),
        stage=one.stage,
        curve=one.curve(),
        warnings=work.masking.get(norm, []),
    )
