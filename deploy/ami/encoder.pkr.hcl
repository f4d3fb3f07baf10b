# The image of nommerd's machines, feeder and encoder nodes alike, on EC2. For Packer 1.6 and everything after it: what newer
# ones want beyond this (`packer init`) is in plugins/, because 1.6 does not know it. README.md says how to build with it.

variable "base" {
  description = "What the image is made of, for its name and tags: debian-12, debian-13, ubuntu-24.04."
  type        = string
}

variable "architecture" {
  description = "As EC2 calls it: x86_64 or arm64."
  type        = string
}

variable "source_image" {
  description = "The name that the base's images have, with *: the newest of them is taken."
  type        = string
}

variable "source_owner" {
  description = "The AWS account that publishes the base's images. Others may give theirs the same names."
  type        = string
}

variable "ssh_username" {
  description = "The user whom the base's cloud-init makes."
  type        = string
}

variable "root_device" {
  description = "The base's name of its first volume."
  type        = string
}

variable "instance_type" {
  description = "What the image is made on, of the right architecture."
  type        = string
}

variable "region" {
  description = "Where the image is made."
  type        = string
}

variable "nommerd_source" {
  description = "A wheel, or a folder with nommerd's source, on this machine. Empty: nommerd_version, from the package index."
  type        = string
  default     = ""
}

variable "nommerd_version" {
  description = "The version, for the image's name; without nommerd_source it is what is installed."
  type        = string
}

variable "ffmpeg" {
  description = "The distribution's, or the wheels'."
  type        = string
  default     = "distribution"
}

variable "name_prefix" {
  description = "The image is called PREFIX-VERSION-BASE-ARCHITECTURE-TIME."
  type        = string
  default     = "nommerd"
}

variable "volume_gib" {
  description = "The size of the image's volume, which is also that of each node's only disk."
  type        = number
  default     = 20
}

variable "encrypted" {
  description = "Whether the image's volume is encrypted, with kms_key_id or the account's default key."
  type        = bool
  default     = false
}

variable "kms_key_id" {
  description = "The key of an encrypted image."
  type        = string
  default     = ""
}

variable "copy_to_regions" {
  description = "Further regions that get a copy."
  type        = list(string)
  default     = []
}

variable "share_with" {
  description = "Other AWS accounts that may start machines from it."
  type        = list(string)
  default     = []
}

variable "subnet_id" {
  description = "Where it is made. Empty: in the account's default VPC."
  type        = string
  default     = ""
}

variable "associate_public_ip" {
  description = "Whether the machine it is made on gets a public address; false where this machine reaches the subnet itself."
  type        = bool
  default     = true
}

variable "ssh_from" {
  description = "The networks that may reach the machine it is made on, by SSH and only by key, while it is made."
  type        = list(string)
  default     = ["0.0.0.0/0"]
}

variable "ssh_private_key_file" {
  description = "The private key of authorized_key. Empty: Packer and EC2 make one, an RSA key, which Packer before 1.8 cannot use with today's OpenSSH."
  type        = string
  default     = ""
}

variable "authorized_key" {
  description = "A public key, in a line as in authorized_keys."
  type        = string
  default     = ""
}

variable "ssh_host" {
  description = "Where to reach the machine, where that is not its own address: a tunnel's end."
  type        = string
  default     = ""
}

variable "ssh_port" {
  type    = number
  default = 22
}

variable "ec2_endpoint" {
  description = "Another address of EC2's API: a VPC endpoint, an emulator."
  type        = string
  default     = ""
}

variable "manifest" {
  description = "The file that Packer writes the image's id into."
  type        = string
  default     = "packer-manifest.json"
}

locals {
  time   = formatdate("YYYYMMDDhhmmss", timestamp())
  remote = "/tmp/nommerd-image"
  wanted = var.nommerd_source == "" ? "--version '${var.nommerd_version}'" : "--source '/tmp/nommerd-image/${basename(var.nommerd_source)}'"
}

source "amazon-ebs" "encoder" {
  region                      = var.region
  custom_endpoint_ec2         = var.ec2_endpoint
  skip_region_validation      = var.ec2_endpoint != ""
  instance_type               = var.instance_type
  subnet_id                   = var.subnet_id
  associate_public_ip_address = var.associate_public_ip

  source_ami_filter {
    filters = {
      name                = var.source_image
      architecture        = var.architecture
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
    owners      = [var.source_owner]
    most_recent = true
  }

  communicator                          = "ssh"
  ssh_username                          = var.ssh_username
  ssh_private_key_file                  = var.ssh_private_key_file
  ssh_host                              = var.ssh_host
  ssh_port                              = var.ssh_port
  temporary_security_group_source_cidrs = var.ssh_from
  user_data                             = var.authorized_key == "" ? "" : "#cloud-config\nssh_authorized_keys: [${jsonencode(var.authorized_key)}]\n"

  ami_name        = "${var.name_prefix}-${var.nommerd_version}-${var.base}-${var.architecture}-${local.time}"
  ami_description = "nommerd ${var.nommerd_version} on ${var.base}, ${var.architecture}"
  ami_regions     = var.copy_to_regions
  ami_users       = var.share_with
  encrypt_boot    = var.encrypted
  kms_key_id      = var.kms_key_id
  ena_support     = true

  launch_block_device_mappings {
    device_name           = var.root_device
    volume_size           = var.volume_gib
    volume_type           = "gp3" # with what is in its price; Packer 1.6 wants to hear it
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
  }

  run_tags        = { Name = "nommerd image build" }
  run_volume_tags = { Name = "nommerd image build" }
  tags = {
    Name                 = "nommerd ${var.nommerd_version}"
    "nommerd:version"    = var.nommerd_version
    "nommerd:base"       = var.base
    "nommerd:ffmpeg"     = var.ffmpeg
    "nommerd:made-of"    = "{{ .SourceAMIName }}"
    "nommerd:made-of-id" = "{{ .SourceAMI }}"
  }
}

build {
  sources = ["source.amazon-ebs.encoder"]

  # its first boot is still at work when SSH answers: it sets apt's sources, and what apt does by itself then holds apt's locks
  provisioner "shell" {
    inline = [
      "if command -v cloud-init >/dev/null; then cloud-init status --wait >/dev/null || [ $? -eq 2 ]; fi",
      "if [ -d /run/systemd/system ]; then sudo systemctl stop 'apt-daily*.timer' 'apt-daily*.service'; fi",
      "rm -rf ${local.remote}",
      "mkdir -m 0700 ${local.remote}",
    ]
  }

  provisioner "file" {
    sources     = concat(["${path.root}/"], compact([var.nommerd_source]))
    destination = "${local.remote}/"
  }

  provisioner "shell" {
    inline = ["sudo bash ${local.remote}/provision.sh --image --ffmpeg '${var.ffmpeg}' ${local.wanted}"]
  }

  provisioner "shell" {
    inline = ["sudo bash ${local.remote}/seal.sh ${local.remote}"]
  }

  post-processor "manifest" {
    output = var.manifest
  }
}
