import pytest

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.simulator.cluster import GPU, Mesh, MeshGroup, VirtualMesh


def test_every_device_has_a_stream_of_its_own():
    names = [
        GPU().stream_name,
        *Mesh((2, 3)).stream_names,
        *VirtualMesh((1, 4)).launch_mesh_group([(1, 4)]).meshes[0].stream_names,
    ]
    assert len(set(names)) == len(names) == 11


def test_a_mesh_has_as_many_devices_as_its_shape_says():
    assert (Mesh((2, 3)).num_gpus, VirtualMesh((1, 8)).num_gpus) == (6, 8)
    assert [mesh.num_gpus for mesh in MeshGroup([(1, 2), (1, 1)]).meshes] == [2, 1]


def test_submeshes_share_no_device_and_models_of_a_group_share_them_all():
    mesh = VirtualMesh((1, 4))
    one, other = mesh.launch_mesh_group([(1, 2), (1, 2)]).meshes
    assert not set(one.stream_names) & set(other.stream_names)
    again = mesh.launch_mesh_group([(1, 1)] * 4).meshes
    assert [name for part in again for name in part.stream_names] == [*one.stream_names, *other.stream_names]


def test_submeshes_that_need_more_devices_are_refused():
    with pytest.raises(InvalidPlacementError, match=r"need 6 devices; the mesh \(1, 4\) has 4"):
        VirtualMesh((1, 4)).launch_mesh_group([(1, 4), (1, 2)])


def test_a_mesh_of_given_devices_needs_as_many_as_its_shape_says():
    with pytest.raises(InvalidPlacementError, match="has 2 devices, got 1"):
        Mesh((1, 2), [GPU()])


@pytest.mark.parametrize("shape", [(0, 1), (1, -1), (1,), (1, 2, 3), (1, 1.5), "12", None, 8])
def test_a_shape_is_two_whole_numbers(shape):
    for make in (Mesh, VirtualMesh, lambda shape: MeshGroup([shape])):
        with pytest.raises(InvalidPlacementError, match="mesh"):
            make(shape)
