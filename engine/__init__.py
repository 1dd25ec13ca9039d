"""Work spread over processes and machines by Ray, which is behind the extra `cluster`."""
