"""Data sets: what is read of folders, tables and split files, and what is refused."""

import pyarrow
import pyarrow.parquet
import pytest

import selrel_zennit as sr
from selrel_zennit.evaluate import read_dataset
from selrel_zennit.synthetic import CLASSES, SyntheticSpec, make_clip


def touched(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def table(root, text, name="labels.csv"):
    (root / name).write_text(text)
    return root / name


def test_a_folder_of_classes(tmp_path):
    data = read_dataset(touched(tmp_path / "set", "b/2.mp4", "b/1.avi", "a/1.mp4", "a/notes.txt", ".git/x.mp4"))
    assert data.classes == ("a", "b")
    assert [(video.name, video.label, video.split) for video in data] == [
        ("a/1.mp4", "a", None),
        ("b/1.avi", "b", None),
        ("b/2.mp4", "b", None),
    ]
    assert data.name == "set"
    assert repr(data) == "Dataset(set: 3 videos of 2 classes)"


def test_splits_above_the_classes(tmp_path):
    data = read_dataset(touched(tmp_path, "train/a/1.mp4", "test/a/2.mp4", "test/b/3.mp4"))
    assert data.splits == ("test", "train")
    assert [video.name for video in data.part("test")] == ["test/a/2.mp4", "test/b/3.mp4"]
    assert data.part("train").classes == ("a", "b")
    with pytest.raises(sr.InputError, match=r"no split 'tset' \(did you mean 'test'"):
        data.part("tset")


TABLE = """path,label,split,group,start,stop,box,scene
a/1.mp4,walk,train,g1,,,,park
b/1.mp4,run,test,g2,5,25,10 20 30.5 40,road
b/1.mp4,run,test,g2,25,,,road
"""


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_a_table(tmp_path, kind):
    touched(tmp_path, "a/1.mp4", "b/1.mp4")
    path = table(tmp_path, TABLE)
    if kind == "parquet":
        names, *rows = [line.split(",") for line in TABLE.splitlines()]
        columns = {name: [row[at] or None for row in rows] for at, name in enumerate(names)}
        columns["start"] = [None if value is None else int(value) for value in columns["start"]]
        path = tmp_path / "table.parquet"
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    data = read_dataset(tmp_path if kind == "folder" else path)
    assert data.classes == ("run", "walk")
    second = data.videos[1]
    assert (second.name, second.group, second.start, second.stop) == ("b/1.mp4#5-25", "g2", 5, 25)
    assert second.box == (10, 20, 30.5, 40)
    assert second.properties == {"scene": "road"}
    assert [data.index(video) for video in data] == [1, 0, 0]
    assert second.digest() != data.videos[2].digest() != data.videos[0].digest()


def test_a_split_file(tmp_path):
    touched(tmp_path / "videos", "Archery/v_Archery_g08_c01.avi", "Bowling/v_Bowling_g25_c02.avi")
    lines = "Archery/v_Archery_g08_c01.avi 1\nBowling/v_Bowling_g25_c02.avi 2\n"
    data = read_dataset(table(tmp_path, lines, "trainlist01.txt"), root=tmp_path / "videos")
    assert [(video.label, video.split, video.group) for video in data] == [
        ("Archery", "train", "g08"),
        ("Bowling", "train", "g25"),
    ]


def test_the_generators_clips():
    data = read_dataset("synthetic:bias=0.5,height=32,width=32,train=2,validation=0,test=9")
    assert data.classes == CLASSES
    assert data.splits == ("train", "test")
    videos = data.part("test").videos
    assert sorted(video.label for video in videos[:8]) == sorted(CLASSES)
    clip = make_clip(SyntheticSpec(bias=0.5, height=32, width=32), 33, 3)
    assert (videos[3].frames() == clip.frames).all()
    assert videos[3].label == clip.class_name
    assert len({video.digest() for video in data}) == 11


def test_some_classes_in_an_order_of_their_own(tmp_path):
    data = read_dataset(touched(tmp_path, "a/1.mp4", "b/1.mp4", "c/1.mp4"), classes=["c", "a"])
    assert data.classes == ("c", "a")
    assert [data.index(video) for video in data] == [1, 0]
    with pytest.raises(sr.InputError, match="no class 'd'"):
        read_dataset(tmp_path, classes=["d"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("path,label\n", "a table without rows"),
        ("file,label\nx.mp4,a\n", "no column 'path'; it has: file, label"),
        ("path,label\nx.mp4,a\nx.mp4,b\n", r"line 3: x.mp4 stands in line 2 already"),
        ("path,label\nx.mp4,\n", "line 2: a row without path or label"),
        ("path,label\nx.mp4,a,b\n", "line 2: a row without path or label, or not as long"),
        ("path,label,start\nx.mp4,a,-1\n", "line 2: start must be a whole number"),
        ("path,label,start\nx.mp4,a,2.5\n", "line 2: start must be a whole number"),
        ("path,label,start,stop\nx.mp4,a,5,5\n", "line 2: stop must come after start"),
        ("path,label,box\nx.mp4,a,1 2 1 5\n", "line 2: box must be 'left top right bottom'"),
        ("path,label,box\nx.mp4,a,1 2\n", "line 2: box must be 'left top right bottom'"),
        ("path,label\ngone.mp4,a\n", "1 of 1 videos are not there, .*gone.mp4 first; say with --root"),
    ],
)
def test_tables_that_are_refused(tmp_path, text, said):
    touched(tmp_path, "x.mp4")
    with pytest.raises(sr.InputError, match=said):
        read_dataset(table(tmp_path, text))


def test_what_is_no_data_set(tmp_path):
    with pytest.raises(sr.InputError, match="no such folder or file"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(sr.InputError, match=r"no labels.csv and no folders CLASS/FILE"):
        read_dataset(tmp_path)
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(sr.InputError, match="is no table"):
        read_dataset(tmp_path / "x.csv")
    (tmp_path / "x.parquet").write_bytes(b"path,label")
    with pytest.raises(sr.InputError, match="is no Parquet table"):
        read_dataset(tmp_path / "x.parquet")
    with pytest.raises(sr.InputError, match=r"no setting 'bais' \(did you mean 'bias'"):
        read_dataset("synthetic:bais=1")
    with pytest.raises(sr.InputError, match="takes a number"):
        read_dataset("synthetic:bias=much")
    with pytest.raises(sr.InputError, match=r"no video"):
        read_dataset("synthetic:train=0,validation=0,test=0")
