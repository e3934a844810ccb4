"""What every method of dataset expansion shares; it names no method.

settings         config option_parser texts recipe prompts seeding devices errors stopping
                 quiet progress caching
real images      image_datasets records content splits label_noise check_dataset
                 generated_images pixels pixel_report colour_profiles
their layouts    dataset_layouts dataset_configs known_layouts metadata_files file_trees
                 split_folders class_folders unused_files readers list_readers list_files rows
                 mat_reader array_readers array_files digits
diffusion        checkpoints checkpoint_configs weight_files lora hub
                 stable_diffusion denoising samples sampler_config sampler variants
                 img2img memory batch_size
an expansion     plan identity sharding work_queue generation
its folder       naming runs writer manifest places expanded_set tars status
classifiers      backbones small_resnets clip_backbone classifier_files weight_names
                 transforms augmentations strong_augmentation
their training   training_options experiment training curves objectives batches pixel_cache
                 training_checks divergence run_lock
use of results   finished_runs predict predictor export merging dataset_card
measurements     similarity figures lettering sheets tables
                 metrics metrics.predictions metrics.measures metrics.classification
                 metrics.comparison metrics.coverage metrics.runs metrics.tables
                 benchmark contenders phases benchmark_training training_rates
a study's page   study study.page study.verdict study.charts study.classes study.gallery
                 study.sets study.recognised study.cost study.origins
a whole study    study.__main__ study.config study.photos study.choices study.plan
                 study.steps study.estimate study.jobs study.runner study.worker study.talk
"""
