"""The web page of ``mf serve``: forms, live previews, results to look at. ``build.mount`` mounts it."""
