"""What a device needs beside an artifact."""
