import spaces  # first: it must come before everything that uses a graphics card

from modality_forcing.server.zero import launch

launch("lowpoly", spaces.GPU)
