"""``mf serve``: ``app`` speaks HTTP, ``service`` keeps the jobs, ``worker`` owns the model."""
