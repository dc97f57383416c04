"""The classes of SkyPilot's errors that matter here, derived from each other as there."""


class ResourcesUnavailableError(Exception):
    pass


class NoCloudAccessError(Exception):
    pass


class ClusterDoesNotExist(ValueError):
    pass


class ApiServerConnectionError(RuntimeError):
    pass


class CommandFailureException(Exception):
    pass


class CommandError(CommandFailureException):
    pass


class RequestCancelled(Exception):
    pass


class ResourcesMismatchError(Exception):
    pass


class ClusterNotUpError(ValueError):
    pass
