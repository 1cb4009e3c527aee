"""LoRAs, compared with the layers of a checkpoint by the headers of their files alone, without torch."""
