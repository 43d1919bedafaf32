"""Texts compared over HTTP, by an engine whose vector of a prompt counts its tokens."""

import numpy as np
import pytest

VECTOR_WIDTH = 16
QUERY, DOCUMENTS = "the quick", ["zzz", "the quick", "the quick fox"]


@pytest.fixture
def cosine(tokenizer):
    def between(first, second):
        one, other = (
            np.bincount([i % VECTOR_WIDTH for i in tokenizer.encode(text).ids], minlength=VECTOR_WIDTH)
            for text in (first, second)
        )
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other)

    return between


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"), ("queries", "items")]
)
async def test_pairs_have_the_cosine_of_their_vectors(server, cosine, path, names):
    answer = (await server.http.post(path, json=dict(zip(names, (QUERY, DOCUMENTS), strict=True)))).json()
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    np.testing.assert_allclose(
        [item["score"] for item in answer["data"]], [cosine(QUERY, document) for document in DOCUMENTS], atol=1e-6
    )
    assert answer["data"][0]["object"] == "score"
    pairs = dict(zip(names, (DOCUMENTS, DOCUMENTS[::-1]), strict=True))
    scores = [item["score"] for item in (await server.http.post(path, json=pairs)).json()["data"]]
    expected = [cosine(*pair) for pair in zip(DOCUMENTS, DOCUMENTS[::-1], strict=True)]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
async def test_documents_come_in_the_order_of_their_likeness(server, cosine, path):
    body = {"query": QUERY, "documents": [{"text": DOCUMENTS[0]}, *DOCUMENTS[1:]]}
    answer = (await server.http.post(path, json={**body, "top_n": 0})).json()
    results = answer["results"]
    assert [result["index"] for result in results] == [1, 2, 0]
    for result in results:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
        assert result["relevance_score"] == pytest.approx(cosine(QUERY, DOCUMENTS[result["index"]]), abs=1e-6)
    assert answer["usage"]["total_tokens"] > 0
    short = (await server.http.post(path, json={**body, "top_n": 1, "return_documents": False})).json()["results"]
    assert [set(result) for result in short] == [{"index", "relevance_score"}]


async def test_what_cannot_be_compared_is_refused_by_name(server, check_envelope):
    for path, body, param in (
        ("/score", {"text_1": ["a", "b"], "text_2": "c"}, "text_1"),
        ("/score", {"text_1": "a"}, "text_2"),
        ("/score", {"text_1": [], "text_2": "c"}, "text_1"),
        ("/score", {"text_1": "a", "text_2": [{"image": 1}]}, "text_2.0"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": "b"}, "documents"),
        ("/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["x"]}, "rank_fields"),
        ("/rerank", {"query": "a", "documents": ["x" * 9999]}, "documents"),
    ):
        assert check_envelope(await server.http.post(path, json=body), 400)["param"] == param
