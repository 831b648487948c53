"""Making results: groups of edits, each phase for all of a group, and each result written as soon as it is there."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from tqdm import tqdm

from tt_flux_kontext.cli.files import read_mask, read_picture
from tt_flux_kontext.cli.interruption import EditInterrupted, Interruption
from tt_flux_kontext.cli.jobs import Job, Report, jobs_of
from tt_flux_kontext.cli.loading import call_arguments, load_pipeline
from tt_flux_kontext.cli.options import Options
from tt_flux_kontext.cli.previews import Previews
from tt_flux_kontext.cli.usage import INTERRUPTED
from tt_flux_kontext.credentials import Claim
from tt_flux_kontext.metadata import save_result

if TYPE_CHECKING:
    from tt_flux_kontext import FluxKontextPipeline

GROUP = 4  # edits: few enough to see results come, and models that change places do so in a quarter of the edits


def make(options: Options) -> int:
    """Makes the results that are not there yet, and returns the exit code."""
    report, timings = Report(len(options.pictures) * len(options.seeds)), Counter()
    jobs = jobs_of(options, report)
    groups = iter(lambda: list(islice(jobs, GROUP)), [])
    try:
        if first := next(groups, None):
            _make_groups(chain([first], groups), options, report, timings)
    except KeyboardInterrupt:
        report.close(timings)
        return INTERRUPTED
    return report.close(timings)


def _make_groups(groups: Iterable[Sequence[Job]], options: Options, report: Report, timings: Counter) -> None:
    """Raises `KeyboardInterrupt` when what was complete before it is written."""
    from tt_flux_kontext import open_device
    from tt_flux_kontext.pictures import to_rgb

    parameters = options.parameters
    mask = read_mask([each.path for each in parameters.masks])
    references = [to_rgb(read_picture(each.path)) for each in parameters.references]
    with open_device(parameters.device) as device:
        pipe = load_pipeline(parameters, device)
        for group in groups:
            readable, images, claims = [], [], []
            for job in group:
                try:
                    image = to_rgb(read_picture(job.picture)) if job.picture else None
                    claims.append(_claim(job, options))
                    images.append(image)
                    readable.append(job)
                except ValueError as error:
                    report.fail(job.picture or job.out, error)
            previews = [Previews(*options.stepwise) if options.stepwise else None for _ in readable]
            with Interruption() as interruption:
                calls = [
                    call_arguments(job.parameters, image, mask, references) | _watched(interruption, preview)
                    for job, image, preview in zip(readable, images, previews, strict=True)
                ]
                results = pipe.edits(calls)
                timings.update(pipe.timings if calls else {})
                for job, claim, preview, result in zip(readable, claims, previews, results, strict=True):
                    if isinstance(result, EditInterrupted):
                        continue
                    try:
                        _write(pipe, job, result, claim, preview, options)
                        report.made += 1
                    except Exception as error:
                        report.fail(job.picture or job.out, error)
            if interruption.asked:
                raise KeyboardInterrupt


def _claim(job: Job, options: Options) -> Claim | None:
    """What is to be signed of a result. Raises `ValueError` where nothing can be signed any more."""
    if options.credentials is None:
        return None
    with ExitStack() as files:
        references = [files.enter_context(open(each.path, "rb")) for each in job.parameters.references]
        return options.credentials.claim(job.picture and files.enter_context(job.picture.open("rb")), *references)


def _write(
    pipe: "FluxKontextPipeline", job: Job, result, claim: Claim | None, previews: Previews | None, options: Options
) -> None:
    """Writes a result. Raises it where it is an exception."""
    if isinstance(result, Exception):
        raise result
    (picture,) = result.images
    made_with = replace(job.parameters, precision=pipe.precision.name)
    save_result(picture, job.out, made_with, beside=options.metadata, claim=claim)
    tqdm.write(str(job.out))
    if previews:
        previews.save(pipe, picture.size, job.out.stem)


def _watched(interruption: Interruption, previews: Previews | None) -> dict:
    """Arguments of a call for what happens after its steps."""

    def after_step(pipe, step: int, timestep, tensors: dict) -> None:
        if previews:
            previews.after_step(step, float(timestep) / 1000, tensors["latents"])
        interruption.after_step(last=step + 1 == pipe.num_timesteps)

    return {
        "callback_on_step_end": after_step,
        "callback_on_step_end_tensor_inputs": ["latents"] if previews else [],
    }
