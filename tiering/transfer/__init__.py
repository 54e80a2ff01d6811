"""Moving blocks between the device and host memory: one mover that knows the order, thin devices that do not."""
