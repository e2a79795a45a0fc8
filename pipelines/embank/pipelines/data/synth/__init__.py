"""Synthetic click logs with a planted model: as raw text (`synth`) or as a prepared folder (`synth_prepared`)."""

from embank.pipelines.data.synth.folder import PreparedReport, synth_prepared
from embank.pipelines.data.synth.raw import synth
from embank.pipelines.data.synth.report import SynthReport

__all__ = ["PreparedReport", "SynthReport", "synth", "synth_prepared"]
