"""HTTP: the only home of aiohttp. Fetches bytes under limits; knows no dataset."""
