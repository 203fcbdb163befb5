"""Published data sets and the user's own files as samples for shards (``mf data convert``)."""
