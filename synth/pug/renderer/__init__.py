"""Taking pictures: the UnrealCV connection, servers, frames and what makes one trustworthy."""
