"""Names that prepared files use themselves, and sizes that a configuration has when it gives none."""

LABEL_COLUMN = "label"
GROUP_COLUMN = "group"
DEFAULT_ROW_GROUP_ROWS = 65_536
