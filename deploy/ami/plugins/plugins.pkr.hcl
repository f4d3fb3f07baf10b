# What `packer init` fetches, for Packer 1.11 and newer, which bring no builders along. Packer 1.6 cannot read this.
packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.2.8, < 2.0.0"
    }
  }
}
