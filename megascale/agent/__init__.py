"""The node daemon: zygote, rank processes, rank records, log watch, one stream to the driver."""
