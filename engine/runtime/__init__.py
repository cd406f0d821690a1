"""Services that every command needs: flags, errors, files, devices, processes, memory, requests to stop."""
