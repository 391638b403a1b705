"""What the Dockerfile's build stages run: the image's file tree and its bill of materials."""
