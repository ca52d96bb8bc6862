"""Nothing of an address that opens a door is stored, and nothing else of it is lost."""

import json

import pytest

from granary.curation.store.addresses import json_without_secrets, stored, without_secrets

KEPT = [
    "https://host/a.jpg",
    "https://host:8080/a%20b.jpg?width=100&id=5&page=2&author=me&keyword=x&st=1&se=2&ex=1",
    "http://[::1]:80/a.jpg",
    "s3://bucket/key with space.jpg",
    "gs://bucket/a?b",
    "hf://datasets/org/name@main/a.jpg",
    "sub/a.jpg",
    "a?b&token.jpg",
    "https://host/@user/a.jpg?url=x@y",
    "https://host/a?flag&x=1#part",
]
CLEANED = {
    "https://me:pw@host/a.jpg": "https://host/a.jpg",
    "https://token@host/a.jpg?x=1": "https://host/a.jpg?x=1",
    "https://me:p@w@host/a.jpg": "https://host/a.jpg",
    "ftp://me:pw@host/a": "ftp://host/a",
    "s3://AKIA:secret@bucket/a": "s3://bucket/a",
    "https://h/a?X-Amz-Algorithm=A&X-Amz-Credential=B%2F&X-Amz-Signature=c&id=7": "https://h/a?id=7",
    "https://h/a?GoogleAccessId=a&Expires=1&Signature=b": "https://h/a",
    "https://h/a?x-goog-signature=1&X%2DGoog%2DDate=2": "https://h/a",
    "https://h/a?sv=2020&st=x&se=y&sr=b&sp=r&sig=abc%3D&v=2": "https://h/a?v=2",
    "https://h/a?Policy=p&Key-Pair-Id=k&w=1": "https://h/a?w=1",
    "https://h/a?api_key=k&access_token=t&auth=x&w=1": "https://h/a?w=1",
    "https://h/a?w=1;token=t": "https://h/a?w=1",
    "https://cdn/a?ex=1&is=2&hm=3&w=4": "https://cdn/a?w=4",
    "https://h/a#access_token=t": "https://h/a",
    "/home/me/pictures/a.jpg": "a.jpg",
    "file:///home/me/a.jpg": "a.jpg",
    "local:///home/me/a.jpg": "a.jpg",
    "zip://b.jpg::file:///home/me/a.zip": "zip://b.jpg::a.zip",
    "simplecache::https://me:pw@host/a": "simplecache::https://host/a",
}


@pytest.mark.parametrize("address", KEPT)
def test_an_address_without_secrets_stays_as_it_is(address):
    assert stored(address) == address


@pytest.mark.parametrize("address", CLEANED)
def test_secrets_and_folders_go(address):
    assert stored(address) == CLEANED[address]
    assert stored(stored(address)) == stored(address)


def test_addresses_inside_texts():
    text = "cannot read https://me:pw@host/a?sig=x, nor (http://host/b?w=1) at 12:30"
    assert without_secrets(text) == "cannot read https://host/a nor (http://host/b?w=1) at 12:30"
    assert without_secrets("no address, 1 :// 2") == "no address, 1 :// 2"


def test_json_keeps_its_form():
    tree = {"url": "https://me:pw@h/a?sig=x&w=1", "n": [1.50, None], "text": 'a "b" \\/ ü', "deep": {"u": "s3://b/k"}}
    for text in (json.dumps(tree), json.dumps(tree).replace("/", "\\/").replace("&", "\\u0026"), json.dumps([tree])):
        clean = json_without_secrets(text)
        assert "pw" not in clean
        assert "sig" not in clean
        assert '"https://h/a?w=1"' in clean
        assert "1.5" in clean
        json.loads(clean)
    untouched = '{"a" :  "http:\\/\\/host\\/x", "b": 2.50}'
    assert json_without_secrets(untouched) == untouched
    assert json_without_secrets("[" * 100_000 + '"https://me:pw@h/a"').endswith('"https://h/a"')
    assert json_without_secrets('{"broken": "https://me:pw@h') == '{"broken": "https://h'
