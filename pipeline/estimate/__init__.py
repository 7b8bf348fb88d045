"""What a run will need before it is started: memory, time, data, disk, from its settings and a kind of device."""
