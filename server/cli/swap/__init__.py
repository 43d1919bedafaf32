"""What moving adapters costs: from upload, disk and host to the device, beside requests that run."""
