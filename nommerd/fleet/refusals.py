"""What EC2's error codes mean for a launch, and which setting they speak of."""

from __future__ import annotations

from nommerd.aws.clients import TRANSIENT
from nommerd.errors import ConfigError, InfrastructureError

# No node of this type in this place now; others may have some.
SHORT = frozenset({
    "InsufficientCapacity", "InsufficientCapacityOnHost", "InsufficientFreeAddressesInSubnet", "InsufficientHostCapacity",
    "InsufficientInstanceCapacity", "InsufficientReservedInstanceCapacity", "InvalidFleetConfiguration", "SpotMaxPriceTooLow",
    "UnfulfillableCapacity", "Unsupported", "UnsupportedOperation",
})  # InvalidFleetConfiguration and the last two: this zone has no such type at all
# The account may have no more of this kind now.
LIMITED = frozenset({"InstanceLimitExceeded", "MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"})
PASSING = TRANSIENT | {"InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"}  # of one pool's launch
NOT_NOW = SHORT | LIMITED | PASSING  # nothing that the settings could change
NO_TEMPLATE = ("InvalidLaunchTemplateId", "InvalidLaunchTemplateName")
MISMATCH = "IdempotentParameterMismatch"
_SETTINGS = (
    ("InvalidAMIID", "fleet.image_id"), ("InvalidKeyPair", "fleet.key_name"), ("InvalidSubnet", "fleet.subnets"),
    ("InvalidSecurityGroup", "fleet.security_groups"), ("InvalidGroup", "fleet.security_groups"),
    ("InvalidInstanceType", "fleet.instance_types"), ("InvalidZone", "fleet.zones"),
    ("InvalidAvailabilityZone", "fleet.zones"),
)
_WORDS = (("instanceprofile", "fleet.instance_profile"), ("availabilityzone", "fleet.zones"), ("subnet", "fleet.subnets"),
          ("securitygroup", "fleet.security_groups"), ("instancetype", "fleet.instance_types"), ("keypair", "fleet.key_name"),
          ("imageid", "fleet.image_id"), ("userdata", "fleet"))
_DENIED = ("UnauthorizedOperation", "AccessDenied", "AuthFailure", "OptInRequired", "PendingVerification", "Blocked",
           "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException")


class Ec2Unavailable(InfrastructureError):
    """EC2 is out of reach, throttles or fails: whether the call was applied is not known."""

    def __init__(self, message: str) -> None:
        super().__init__("node.ec2_unavailable", message, "It is tried again.")


class Ec2Refused(ConfigError):
    """EC2 refused the call, and will again until somebody changes something: `place` names what. `aws_code` is EC2's word."""

    def __init__(self, aws_code: str, message: str, said: str = "") -> None:
        super().__init__("config.ec2", message, _hint(aws_code), place=setting(aws_code, said or message))
        self.aws_code = aws_code


def setting(aws_code: str, message: str = "") -> str:
    """The setting that a refusal speaks of."""
    if aws_code.startswith(_DENIED):
        return "aws"
    for prefix, name in _SETTINGS:
        if aws_code.startswith(prefix):
            return name
    spoken = message.lower().replace(" ", "").replace("_", "").replace("-", "")
    return next((name for word, name in _WORDS if word in spoken), "fleet")


def _hint(aws_code: str) -> str:
    if aws_code.startswith(_DENIED):
        return "`nommerd aws setup --dry-run` prints the permissions that the feeder needs."
    return "Nothing is launched until it is right."
