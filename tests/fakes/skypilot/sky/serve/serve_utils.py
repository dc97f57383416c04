import enum


class UpdateMode(enum.Enum):
    ROLLING = "rolling"
    BLUE_GREEN = "blue_green"
